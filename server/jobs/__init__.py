"""Work that nobody waits for at the other end of a connection: jobs, kept in the registry's store until they are done."""
