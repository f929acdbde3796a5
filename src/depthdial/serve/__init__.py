"""An OpenAI-compatible server of one model at many depths, on FastAPI and `dd.Engine` (`pip install 'depthdial[serve]'`).

`serve.app.create_app` makes the ASGI application, which `depthdial serve` runs with uvicorn.
"""
