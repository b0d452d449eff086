"""The paper's table, in small: every bundled model at five costs, by every way to get there, against real images too."""
