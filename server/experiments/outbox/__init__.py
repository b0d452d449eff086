"""Events on disk, on their way from memory to the registry's store: what was written here survives the process.

    <outbox>/<process>/lock                            held for as long as the process lives
    <outbox>/<process>/counts                          how many events it accepted, and how many of them it wrote
    <outbox>/<process>/<stream>/<day>/<number>.jsonl   events, one a line

Each file is mirrored by one object of the store, which is replaced while the file grows: so objects are few, and to send a file
once more, wherever a process died, changes nothing. A process that starts takes over the folders of those that died, sends what
they had not sent, and says how many events they had accepted and never written.
"""
