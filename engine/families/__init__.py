"""The families of networks that run here, a file each: what a folder's configuration must say, and how its network unrolls."""
