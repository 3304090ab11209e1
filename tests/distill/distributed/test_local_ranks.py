import os
import signal
import subprocess
import sys

from distill.distributed.local_ranks import lock_private, remove_leftovers

HOLD = """
import sys
from pathlib import Path
from distill.distributed.local_ranks import lock_private
held = lock_private(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_supervisor_left_is_removed_by_the_next(tmp_path):
    dead, alive, old, other = (
        tmp_path / name for name in ("distill-launch-a", "distill-launch-b", "distill-launch-c", "x")
    )
    for folder in (dead, alive, old, other):
        (folder / "paddle").mkdir(parents=True)
    (tmp_path / "distill-launch-link").symlink_to(other)
    with lock_private(other):
        pass
    holding = [sys.executable, "-c", HOLD, str(dead)]
    with lock_private(alive), subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        remove_leftovers(tmp_path)
        assert dead.exists()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        remove_leftovers(tmp_path)
        assert not dead.exists() and (alive / "paddle").exists()
    assert (old / "paddle").exists() and (other / "paddle").exists()  # nobody knows whether it is held; not ours
