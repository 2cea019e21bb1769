"""An OpenAI-compatible HTTP server over AsyncEngine: FastAPI and uvicorn, the extra `serve`.

Owns: the protocol. Must not know which executor runs, nor how requests are scheduled.
"""
