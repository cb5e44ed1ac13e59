"""The report over HTTP, on this machine only: a page of Prefect's may link to it, to a file not.

    /          report/index.html of the project
    /NAME/     that of a run with params of its own, runs/workspaces/NAME

One self-contained file each; nothing else is given out, and nobody else's network is listened to.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPORT = Path("report/index.html")
WORKSPACES = Path("runs/workspaces")
PORT = 4280


def start_report_server(root: Path, port: int = PORT) -> str | None:
    """Answer from a thread that ends with the process; its address, None if the port is taken."""

    class Reports(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = report_for(root, self.path)
            content = file.read_bytes() if file is not None else b"no report here yet"
            self.send_response(200 if file is not None else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Who looks at a report is nobody's news."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Reports)
    except OSError:
        return None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def report_for(root: Path, address: str) -> Path | None:
    """The report that an address names, if it is there."""
    name = address.partition("?")[0].strip("/")
    known = {"": root}
    if (root / WORKSPACES).is_dir():  # only what is listed there can be asked for
        known |= {folder.name: folder for folder in (root / WORKSPACES).iterdir()}
    file = known[name] / REPORT if name in known else None
    return file if file is not None and file.is_file() else None
