#!/usr/bin/env python3
"""Builds the Dockerfile without a registry and runs the image the way deploy/kubernetes.yaml does.

    sudo python3 scripts/image-test.py [--fresh]

The base images are stood in for: `debian:*-slim` by a debootstrap of the same release, `rust:*` by
the same with a C compiler, this machine's Rust toolchain (which must be of the version that the
Dockerfile names) and its crate cache, both read-only. Everything else is the Dockerfile's own:
stages, arguments, .dockerignore, copies, commands, user, entry point. Each instruction makes a
layer, cached by its text and input under target/image-test, as a container builder does.

Then the image runs with a read-only root, as its own user, as process 1 of its own PID namespace,
in its own network namespace, without capabilities, with no_new_privs and under deploy/seccomp.json;
and once more with io_uring taken out of that profile.

Needs root, debootstrap, libseccomp2, overlayfs and Debian's mirror (once, for the bases). Takes
about five minutes cold and ten seconds when only checks changed. Mounts live in a private namespace
and are gone when it ends, however it ends.
"""

import argparse
import contextlib
import ctypes
import hashlib
import http.client
import http.server
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "image-test"
STARTUP_S = 30
# More than the default drain grace; no request is running when the signal comes.
EXIT_S = 30
BACKEND = ("127.0.0.1", 18080)

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWPID, CLONE_NEWNET = 0x2000_0000, 0x4000_0000
PR_SET_NO_NEW_PRIVS = 38


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="forget bases and layers first")
    if parser.parse_args().fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    if os.geteuid() != 0:
        sys.exit("NOT RUN: needs root for mounts and chroot")
    for program in ("debootstrap", "mount", "ip", "chroot", "cargo"):
        if shutil.which(program) is None:
            sys.exit(f"NOT RUN: needs {program}")
    profile = json.loads((REPOSITORY / "deploy" / "seccomp.json").read_text())
    # Where a library is missing, better before five minutes of building than after.
    seccomp = Seccomp()

    unshare(CLONE_NEWNS)
    run("mount", "--make-rprivate", "/")
    image = Dockerfile(REPOSITORY / "Dockerfile").build()
    binary = image.find(image.entrypoint[0])
    size = binary.stat().st_size >> 20
    print(f"image: {len(image.layers)} layers over the base, {size} MiB of program")

    checks = Checks()
    checks.image(image)
    granted = {"io_uring" if io_uring_is_granted() else "epoll"}
    checks.container(image, "deploy/seccomp.json", seccomp.compile(profile), granted)
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if not name.startswith("io_uring")]
    checks.container(image, "io_uring refused", seccomp.compile(profile), {"epoll"})
    # In cargo's words, so that scripts/test.sh can add it up.
    counts = f"{checks.passed} passed; {checks.failed} failed; 0 ignored"
    print(f"test result: {checks.verdict()}. {counts}")
    sys.exit(1 if checks.failed else 0)


# ----------------------------------------------------------------------------- building


class Image:
    """A stack of directories, topmost first, and what the Dockerfile says of how to run it."""

    def __init__(self, base, key):
        self.base, self.layers, self.key = base, [], key
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.workdir, self.user, self.entrypoint = "/", "0", []
        self.exposed, self.stop_signal = [], "SIGTERM"
        # Read-only directories that stand in for what the real base image has: inside -> outside.
        self.lent = {}

    def stack(self):
        return ":".join(str(path) for path in [*reversed(self.layers), self.base])

    def mount(self, at, upper=None):
        """Mounts the stack: read-only, or with a layer that takes what is written."""
        at.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={self.stack()}"
        if upper is None:
            # Overlayfs wants two directories when nothing is to be written.
            empty = WORK / "empty"
            empty.mkdir(exist_ok=True)
            options = f"ro,lowerdir={self.stack()}:{empty}"
        else:
            options += f",upperdir={upper},workdir={upper}.work"
        run("mount", "-t", "overlay", "overlay", "-o", options, at)
        return at

    def find(self, path):
        """Where a file of the image lies on this machine."""
        for directory in [*reversed(self.layers), self.base]:
            candidate = directory / path.lstrip("/")
            # Not `exists`: a deleted file is a device in the layer that deletes it.
            if candidate.is_file():
                return candidate
        sys.exit(f"the image has no {path}")


class Dockerfile:
    """The part of the language that our Dockerfile uses; anything else is an error."""

    def __init__(self, path):
        text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
        text = re.sub(r"\\\n\s*", "", text)
        self.instructions = [line.split(None, 1) for line in text.splitlines() if line.strip()]
        self.context = context_files(path.parent)
        self.arguments, self.stages = {}, {}

    def build(self):
        image = None
        for word, rest in self.instructions:
            print(f"  {word} {rest[:100]}", flush=True)
            if word == "ARG" and image is None:
                name, _, default = rest.partition("=")
                self.arguments[name] = default
            elif word == "FROM":
                base, _, name = expand(rest, self.arguments).partition(" AS ")
                image = self.stages[name or "final"] = base_image(base)
            elif word == "WORKDIR":
                image.workdir = rest
                layer(image, f"{word} {rest}", make_directory(rest))
            elif word == "COPY":
                self.copy(image, rest)
            elif word == "RUN":
                layer(image, f"{word} {rest}", chroot_shell(image, rest))
            elif word == "ENV":
                name, _, value = rest.partition("=")
                image.env[name] = value.strip('"')
            elif word == "USER":
                image.user = rest
            elif word == "EXPOSE":
                image.exposed = [int(port) for port in rest.split()]
            elif word == "STOPSIGNAL":
                image.stop_signal = rest
            elif word == "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            else:
                sys.exit(f"Dockerfile: this script does not know {word} here")
        return image

    def copy(self, image, rest):
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            stage = self.stages[sources.pop(0).removeprefix("--from=")]
            files = {Path(s).name: stage.find(s) for s in sources}
            key = stage.key
        else:
            files = {}
            for source in sources:
                matching = [f for f in self.context if f == source or f.startswith(source + "/")]
                if not matching:
                    sys.exit(f"COPY {source}: not in the context; does .dockerignore exclude it?")
                # A directory's contents are copied, a file keeps its name.
                for name in matching:
                    inner = name.removeprefix(source).lstrip("/") or Path(name).name
                    files[inner] = REPOSITORY / name
            key = digest(*(p for n in sorted(files) for p in (n, files[n].read_bytes())))

        def put(root):
            directory = inside(root, os.path.join(image.workdir, target))
            for name, outer in files.items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(outer, directory / name)

        layer(image, f"COPY {rest} {key}", put)


def layer(image, text, action):
    """Adds what `action` does to the image's root as a layer, unless that is known already."""
    image.key = digest(image.key, text)
    directory = WORK / "layers" / image.key
    if not directory.exists():
        upper = directory.with_suffix(".new")
        shutil.rmtree(upper, ignore_errors=True)
        upper.mkdir(parents=True)
        Path(f"{upper}.work").mkdir(exist_ok=True)
        root = image.mount(WORK / "root", upper)
        try:
            action(root)
        finally:
            run("umount", "--recursive", root)
            shutil.rmtree(f"{upper}.work")
        upper.rename(directory)
    image.layers.append(directory)


def make_directory(path):
    """`WORKDIR`"""
    return lambda root: inside(root, path).mkdir(parents=True, exist_ok=True)


def chroot_shell(image, command):
    """`RUN`"""
    return lambda root: run_in_root(image, root, command)


def run_in_root(image, root, command):
    """A shell in the root, with what a container builder gives it."""
    run("mount", "-t", "proc", "proc", root / "proc")
    devices(root)
    for inner, outer in image.lent.items():
        at = inside(root, inner)
        at.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", outer, at)
        run("mount", "-o", "remount,bind,ro", at)
    for inner in ("/usr/local/cargo/registry",) if image.lent else ():
        # Cargo writes locks and unpacked sources beside what it has downloaded.
        upper, work = WORK / "cargo-upper", WORK / "cargo-work"
        for directory in (upper, work, inside(root, inner)):
            directory.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={cargo_home() / 'registry'},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, inside(root, inner))
    run("chroot", root, "/bin/sh", "-ec", f"cd {image.workdir}\n{command}", env=image.env)


def base_image(name):
    """What stands in for an image of the registry."""
    distribution, _, tag = name.partition(":")
    release = re.sub(r"^[\d.]+-|-slim$", "", tag)
    if distribution == "debian":
        root = debootstrap(release, [])
        return Image(root, digest(root.name))
    if distribution != "rust":
        sys.exit(f"FROM {name}: this script can stand in for debian and rust only")
    version = tag.partition("-")[0]
    sysroot = Path(output("rustc", "--print", "sysroot").strip())
    have = output("rustc", "--version").split()[1]
    if not (have + ".").startswith(version + "."):
        sys.exit(f"FROM {name}: this machine's Rust is {have}")
    run("cargo", "fetch", "--locked", "--quiet")
    image = Image(debootstrap(release, ["gcc", "libc6-dev"]), digest(release, have))
    image.lent = {"/usr/local/rust": sysroot}
    image.env["PATH"] = "/usr/local/rust/bin:" + image.env["PATH"]
    image.env["CARGO_HOME"] = "/usr/local/cargo"
    image.env["CARGO_NET_OFFLINE"] = "true"
    print(f"    {name}: Debian {release} with gcc, Rust {have} of {sysroot}, cached crates")
    return image


def debootstrap(release, packages):
    root = WORK / "-".join(["debian", release, *packages])
    if not root.exists():
        fresh = root.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        include = [f"--include={','.join(packages)}"] if packages else []
        with open(WORK / "debootstrap.log", "wb") as log:
            run("debootstrap", "--variant=minbase", *include, release, fresh, stdout=log)
        fresh.rename(root)
    return root


def context_files(directory):
    """What a container builder is sent: the files that .dockerignore leaves, last match wins."""
    rules = []
    for line in (directory / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            rules.append((line.startswith("!"), line.lstrip("!").strip("/")))
    names = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")

    def is_sent(name):
        sent = True
        for include, pattern in rules:
            if pattern == "*" or name == pattern or name.startswith(pattern + "/"):
                sent = include
        return sent

    return [n for n in names.split("\0") if n and is_sent(n) and (directory / n).is_file()]


# ----------------------------------------------------------------------------- running


class Seccomp:
    """Makes a real filter of a profile in Docker's format, with libseccomp."""

    ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF_0000, "SCMP_ACT_ERRNO": 0x0005_0000}
    NOT_EQUAL, EQUAL, MASKED_EQUAL = 1, 4, 7
    COMPARISONS = {
        "SCMP_CMP_NE": NOT_EQUAL,
        "SCMP_CMP_EQ": EQUAL,
        "SCMP_CMP_MASKED_EQ": MASKED_EQUAL,
    }

    class Comparison(ctypes.Structure):
        """`struct scmp_arg_cmp`"""

        _fields_ = [
            ("arg", ctypes.c_uint),
            ("op", ctypes.c_int),
            ("datum_a", ctypes.c_uint64),
            ("datum_b", ctypes.c_uint64),
        ]

    def __init__(self):
        try:
            self.library = ctypes.CDLL("libseccomp.so.2")
        except OSError as error:
            sys.exit(f"NOT RUN: needs libseccomp2: {error}")
        self.library.seccomp_init.restype = ctypes.c_void_p
        self.library.seccomp_init.argtypes = [ctypes.c_uint32]
        self.library.seccomp_load.argtypes = [ctypes.c_void_p]
        self.library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(self.Comparison),
        ]

    def action(self, name, errno_to_return):
        value = self.ACTIONS[name]
        return value | errno_to_return if name == "SCMP_ACT_ERRNO" else value

    def compile(self, profile):
        """A function that puts the calling process under the profile."""
        rules = []
        for rule in profile["syscalls"]:
            action = self.action(rule["action"], rule.get("errnoRet", profile["defaultErrnoRet"]))
            comparisons = [
                self.Comparison(
                    a["index"], self.COMPARISONS[a["op"]], a["value"], a.get("valueTwo", 0)
                )
                for a in rule.get("args", [])
            ]
            for name in rule["names"]:
                number = self.library.seccomp_syscall_resolve_name(name.encode())
                # -1: a name that nobody knows. Other negatives: not on this architecture.
                if number == -1:
                    sys.exit(f"deploy/seccomp.json: there is no system call {name}")
                if number >= 0:
                    rules.append((action, number, comparisons))

        def load():
            default = self.action(profile["defaultAction"], profile["defaultErrnoRet"])
            context = self.library.seccomp_init(default)
            for action, number, comparisons in rules:
                array = (self.Comparison * len(comparisons))(*comparisons)
                failed(
                    self.library.seccomp_rule_add_array(
                        context, action, number, len(comparisons), array
                    ),
                    f"rule for system call {number}",
                )
            failed(self.library.seccomp_load(context), "seccomp_load")

        return load


class Checks:
    """Counts what holds."""

    def __init__(self):
        self.passed = self.failed = 0

    def verdict(self):
        return "FAILED" if self.failed else "ok"

    def that(self, claim, holds, detail=""):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
        print(f"  ok: {claim}" if holds else f"  FAILED: {claim}: {detail}", flush=True)

    def image(self, image):
        print("the image")
        self.that("runs as a numeric user that is not root", image.user == "1000:1000", image.user)
        passwd = image.find("/etc/passwd").read_text()
        self.that("has the user stepflow", "\nstepflow:x:1000:1000:" in passwd, passwd)
        self.that("exposes 8080 and 9090", image.exposed == [8080, 9090], image.exposed)
        compilers = [p for p in image.layers if list(p.glob("usr/bin/*gcc*"))]
        self.that("has no compiler", not compilers, compilers)

    def container(self, image, name, load_filter, expected_drivers):
        """In a child of its own, because namespaces are for ever."""
        print(f"a container: {name}", flush=True)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            inner = Checks()
            try:
                pod(inner, image, load_filter, expected_drivers)
            except Exception as error:
                inner.that("the checks came to their end", False, repr(error))
            os.write(writer, json.dumps([inner.passed, inner.failed]).encode())
            sys.stdout.flush()
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            passed, failed_ = json.loads(pipe.read() or b"[0, 1]")
        os.waitpid(child, 0)
        self.passed += passed
        self.failed += failed_


def pod(checks, image, load_filter, expected_drivers):
    """A network of its own with one backend and the container, and what must be true of it."""
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS)
    run("ip", "link", "set", "lo", "up")
    serve_backend()
    root = image.mount(WORK / "container")
    log_path = WORK / "container.log"
    env = {**image.env, "UPSTREAM_SERVICE": f"{BACKEND[0]}:{BACKEND[1]}"}
    pid = start_container(image, root, env, load_filter, log_path)
    try:
        health = wait_for_health(pid)
        checks.that("is healthy on the data port", health == (200, "healthy"), health)
        answer = get(8080, "/hello")
        checks.that("forwards a request", answer == (200, b"from the backend"), answer)
        status, body = get(9090, "/metrics")
        drivers = set(re.findall(rb'stepflow_lb_worker_driver\{[^}]*driver="(\w+)[^}]*\} 1', body))
        drivers = {driver.decode() for driver in drivers}
        checks.that(f"runs on {expected_drivers}", drivers == expected_drivers, (status, drivers))
        about = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        checks.that("has uid 1000", about["Uid"].split() == ["1000"] * 4, about["Uid"])
        checks.that("has no capabilities", int(about["CapEff"], 16) == 0, about["CapEff"])
        checks.that("cannot gain privileges", about["NoNewPrivs"] == "1", about["NoNewPrivs"])
        checks.that("is under a seccomp filter", about["Seccomp"] == "2", about["Seccomp"])
        checks.that("is process 1 of its namespace", about["NSpid"].split()[-1] == "1")
        checks.that("has a read-only root", is_read_only(Path(f"/proc/{pid}/root")))
        os.kill(pid, getattr(signal, image.stop_signal))
        code = wait_exit(pid, EXIT_S)
        checks.that(f"exits with 0 on {image.stop_signal}", code == 0, code)
        pid = None
    finally:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if checks.failed:
            print(log_path.read_text(errors="replace")[-8000:])


def start_container(image, root, env, load_filter, log_path):
    """Starts the entry point as process 1 of a new PID namespace and returns its pid out here."""
    unshare(CLONE_NEWPID)
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        unshare(CLONE_NEWNS)
        run("mount", "-t", "proc", "proc", root / "proc")
        devices(root)
        # The cgroup files, from which the program learns its share of the CPUs.
        run("mount", "--rbind", "/sys", root / "sys")
        os.chroot(root)
        os.chdir(image.workdir)
        user, group = (int(part) for part in image.user.split(":"))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        failed(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        load_filter()
        os.execve(image.entrypoint[0], image.entrypoint, env)
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    os._exit(127)


class Backend(http.server.BaseHTTPRequestHandler):
    """Healthy, and recognisable."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        health = json.dumps({"status": "healthy", "instanceId": "pod-1"}).encode()
        body = health if self.path == "/health" else b"from the backend"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve_backend():
    server = http.server.ThreadingHTTPServer(BACKEND, Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for_health(pid):
    end = time.monotonic() + STARTUP_S
    last = None
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise RuntimeError("the container ended")
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body = get(8080, "/health")
            last = (status, json.loads(body)["status"])
            if status == 200:
                return last
        time.sleep(0.05)
    return last


def wait_exit(pid, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return f"still running after {within_s} s"


def is_read_only(root):
    try:
        (root / "tmp" / "written").touch()
    except OSError as error:
        return "Read-only" in error.strerror
    return False


# ----------------------------------------------------------------------------- small things


def devices(root):
    """A /dev with the harmless devices, without which nearly nothing runs."""
    run("mount", "-t", "tmpfs", "-o", "mode=755,size=64k", "tmpfs", root / "dev")
    for name in ("null", "zero", "full", "random", "urandom"):
        (root / "dev" / name).touch()
        run("mount", "--bind", f"/dev/{name}", root / "dev" / name)


def inside(root, path):
    return Path(root) / str(path).lstrip("/")


def expand(text, variables):
    return re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], text)


def digest(*parts):
    whole = hashlib.sha256()
    for part in parts:
        octets = part if isinstance(part, bytes) else str(part).encode()
        whole.update(len(octets).to_bytes(8, "big") + octets)
    return whole.hexdigest()[:24]


def cargo_home():
    return Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))


def io_uring_is_granted():
    sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
    import deny_io_uring

    return deny_io_uring.io_uring_errno() == 0


def unshare(flags):
    if LIBC.unshare(ctypes.c_int(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare({flags:#x}): {os.strerror(number)}")


def failed(code, what):
    if code != 0:
        raise OSError(abs(code), f"{what}: {os.strerror(abs(code))}")


def run(*argv, **options):
    subprocess.run([str(a) for a in argv], check=True, cwd=REPOSITORY, **options)


def output(*argv):
    done = subprocess.run(argv, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("NOT RUN: needs Linux")
    main()
