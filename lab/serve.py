"""The job server: runs inside the lab host, one thread per client, one session per job.

A job sees its own copy of the code at the checkout's usual path (a bind mount in its own mount namespace),
since 9p would show it files as they were some time ago.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import pty
import shutil
import socketserver
import struct
import subprocess
import tarfile
import tempfile
import termios
import threading
import time
from pathlib import Path

from lab.kvm import xen_hvm
from lab.wire import (
    EXIT,
    PORT,
    READY,
    RESULTS,
    SIGNAL,
    SIZE,
    STDERR,
    STDIN,
    STDOUT,
    Job,
    frame,
    read_frame,
    unpack,
)

HERE = Path("/run/lab")
JOBS = Path("/dev/shm/jobs")
CGROUPS = Path("/sys/fs/cgroup")

#: $0 is the tree, $1 the checkout, $2 the folder to be in: lay the job's own code over the checkout, keep the
#: venv, then become the command. The cgroup is what ends every process of the job with it.
ENTER = """
B=/run/lab/busybox
echo $$ > "$LAB_CGROUP/cgroup.procs" &&
$B mkdir -p "$0/.venv" &&
{ [ ! -d "$1/.venv" ] || $B mount --bind "$1/.venv" "$0/.venv"; } &&
$B mount --rbind "$0" "$1" && cd "$2" && shift 2 && exec "$@"
"""


class Client(socketserver.StreamRequestHandler):
    """One connection, one job."""

    def handle(self) -> None:
        token = (HERE / "token").read_bytes().strip()
        if not hmac.compare_digest(self.rfile.readline(200).strip(), token):
            return
        job = Job.decode(self.rfile.readline())
        self._sending = threading.Lock()
        JOBS.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="job.", dir=JOBS))
        group = CGROUPS / place.name
        try:
            (place / "code.tar").write_bytes(self.rfile.read(job.tar))
            with tarfile.open(place / "code.tar") as tar:
                unpack(tar, place / "tree")
            (place / "results").mkdir()
            group.mkdir()
            status = self._run(job, place, group)
            with tempfile.TemporaryFile(dir=place) as results:
                with tarfile.open(fileobj=results, mode="w") as tar:
                    tar.add(place / "results", ".")
                results.seek(0)
                while piece := results.read(1 << 16):
                    self._send(RESULTS, piece)
            self._send(EXIT, str(status).encode())
        except ConnectionError:
            pass  # the client went away, and its job with it
        finally:
            shutil.rmtree(place, ignore_errors=True)
            if group.exists():
                group.rmdir()

    def _send(self, kind: bytes, payload: bytes) -> None:
        with self._sending:
            self.request.sendall(frame(kind, payload))

    def _run(self, job: Job, place: Path, group: Path) -> int:
        """Run the job, give its exit status as a shell would: 128 + signal if one ended it."""
        environ = os.environ | job.environ | {"LAB_RESULTS": str(place / "results"), "LAB_CGROUP": str(group)}
        enter = [str(HERE / "busybox"), "unshare", "-m", str(HERE / "busybox"), "sh", "-c", ENTER]
        argv = [*enter, str(place / "tree"), job.checkout, job.cwd, *job.argv]
        master = -1
        if job.terminal:
            master, slave = pty.openpty()
            set_size(slave, job.terminal)
            process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, env=environ, preexec_fn=take_terminal
            )
            os.close(slave)
            outputs = {STDOUT: master}
        else:
            read_out, write_out = os.pipe()
            read_err, write_err = os.pipe()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=write_out,
                stderr=write_err,
                env=environ,
                start_new_session=True,
            )
            os.close(write_out)
            os.close(write_err)
            outputs = {STDOUT: read_out, STDERR: read_err}
        pumps = [threading.Thread(target=self._pump, args=item, daemon=True) for item in outputs.items()]
        listener = threading.Thread(target=self._listen, args=(process, master, group), daemon=True)
        for thread in (*pumps, listener):
            thread.start()
        status = process.wait()
        end(group)  # else a daemon that the job left behind holds the pipes for ever
        for thread in pumps:
            thread.join()
        for fd in outputs.values():
            os.close(fd)
        return status if status >= 0 else 128 - status

    def _pump(self, kind: bytes, fd: int) -> None:
        try:
            while data := os.read(fd, 1 << 16):
                self._send(kind, data)
        except OSError:
            pass  # a terminal without its last user (EIO), or a client that went away

    def _listen(self, process: subprocess.Popen[bytes], master: int, group: Path) -> None:
        while process.poll() is None:
            try:
                got = read_frame(self.rfile)
            except (OSError, ValueError):
                got = None
            if got is None:
                while process.poll() is None:  # again, should it not have joined its cgroup yet
                    kill(group)
                    time.sleep(0.05)
                return
            kind, payload = got
            if kind == SIGNAL:
                os.killpg(process.pid, int(payload))
            elif kind == STDIN and master >= 0:
                os.write(master, payload)
            elif kind == SIZE and master >= 0:
                rows, columns = payload.split()
                set_size(master, (int(rows), int(columns)))


def kill(group: Path) -> None:
    (group / "cgroup.kill").write_text("1")


def end(group: Path) -> None:
    """Kill every process of a job, wait until they are gone."""
    kill(group)
    while "populated 1" in (group / "cgroup.events").read_text():
        time.sleep(0.01)


def set_size(fd: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    with Server(("0.0.0.0", PORT), Client) as server:
        print(f"{READY}, KVM_CAP_XEN_HVM={xen_hvm():#x}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
