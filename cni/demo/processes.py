"""The demo's child processes: none is waited for without a limit, and none outlives the demo.

A signal only leaves a note; whoever waits for a child, or is about to start one, finds it and stops there. So nothing
is ever interrupted between making something and writing down that it was made. What the processes do, and what their
output means, is the caller's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

LOOK_SECONDS: Final = 0.05
"""How soon a signal is noticed."""
END_SECONDS_MAX: Final = 15.0
"""What a child gets to end by itself."""
OURS: Final = ("SPIDERLEDGER_", "SPIDERPOOL_", "MULTUS_", "CNI_")
"""Variables that say something to the programs of the demo, whoever set them."""
PR_SET_PDEATHSIG: Final = 1
_prctl = ctypes.CDLL(None).prctl


class DemoError(Exception):
    """Why the demo cannot go on, in one line."""


class StoppedError(Exception):
    """The demo was told to stop, by this signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return self.number.name


@dataclass(frozen=True)
class Finished:
    """How a child ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last thing that it said."""
        lines = [line for line in (*self.out.splitlines(), *self.err.splitlines()) if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.status}"


def environment(**more: str) -> dict[str, str]:
    """The user's environment for a child, but for what would make it behave differently from the demo's script."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | more


class Processes:
    """The children of one demo."""

    def __init__(self) -> None:
        self._told: signal.Signals | None = None
        self._ending = False

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """While this lasts, SIGINT, SIGTERM and SIGHUP end what is waited for next, with StoppedError."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As under nohup, which is to be respected.
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """From now on signals stop nothing: what is still to run only cleans up."""
        self._ending = True

    def go_on(self) -> None:
        """StoppedError when the demo was told to stop."""
        if self._told is not None and not self._ending:
            raise StoppedError(self._told)

    def run(
        self, command: Sequence[str], *, seconds_max: float, stdin: str = "", folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Finished:  # fmt: skip
        """Run it to its end. DemoError when it cannot be started or does not end."""
        pipe = subprocess.PIPE
        child = self._popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder, env=variables, text=True)
        try:
            out, err = self._communicate(child, stdin, seconds_max)
        except subprocess.TimeoutExpired:
            _kill_group(child)
            raise DemoError(f"`{' '.join(command)}` did not end within {seconds_max:g} s") from None
        except StoppedError:
            _kill_group(child)
            raise
        return Finished(child.returncode, out, err)

    @contextmanager
    def running(
        self, command: Sequence[str], *, log: Path, folder: Path, variables: Mapping[str, str], keep: tuple[int, ...]
    ) -> Iterator[subprocess.Popen[str]]:
        """A child in the background, told to end at the end, and by the kernel should the demo be killed."""
        with log.open("ab") as output:
            child = self._popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=variables, text=True,
                pass_fds=keep, preexec_fn=_end_with_parent,
            )  # fmt: skip
        try:
            yield child
        finally:
            child.terminate()
            _wait_or_kill(child)

    @contextmanager
    def waiting(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """A child that lives for as long as it can read: it ends with the demo, however that ends."""
        pipe = subprocess.PIPE
        child = self._popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            yield child
        finally:
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.close()
            _wait_or_kill(child)
            for stream in (child.stdout, child.stderr):
                _close(stream)

    def _popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        self.go_on()
        try:
            # Of a session of its own, so that Ctrl-C reaches the demo alone, which then ends them in order.
            return subprocess.Popen(command, errors="replace", start_new_session=True, **options)
        except OSError as error:
            raise DemoError(f"{command[0]} cannot be started: {error.strerror}") from error

    def _communicate(self, child: subprocess.Popen[str], stdin: str, seconds_max: float) -> tuple[str, str]:
        deadline = time.monotonic() + seconds_max
        said: str | None = stdin
        while True:
            try:
                return child.communicate(said, LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise
                said = None
            self.go_on()

    def _note(self, number: int, _: object) -> None:
        self._told = self._told or signal.Signals(number)


def _end_with_parent() -> None:
    """Runs in the child: the demo has no threads, so this is safe."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_or_kill(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _kill_group(child: subprocess.Popen[str]) -> None:
    """The child and its own children: it leads their group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()
