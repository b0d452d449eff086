"""How many GPUs a load needs, before there are any: the server's own policy, shares and admission on a virtual clock."""
