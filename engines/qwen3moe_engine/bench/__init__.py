"""Load on a server or an engine, and the figures of it. Must not know how a server is made."""
