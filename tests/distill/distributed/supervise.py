"""A supervisor around fake ranks, as a process of its own: what test_supervisor.py starts and kills."""

import json
import sys
from pathlib import Path

from distill.commands.command_line import run_command
from distill.distributed.hosts import FollowingHost, LeadingHost, Membership
from distill.distributed.supervisor import Job, supervise


def main(arguments, prog_name):
    wanted = json.loads(arguments[0])
    folder = Path(wanted["folder"])
    member = Membership(wanted["host"], wanted["hosts"], f"machine-{wanted['host']}", wanted["facts"])
    master = ("127.0.0.1", wanted["port"])
    job = Job(
        command=lambda resume: [sys.executable, "-u", str(folder / "rank.py"), str(folder), str(resume)],
        ranks=2,
        logs=folder / "logs",
        progress=lambda: sorted(folder.glob("checkpoint-*")),
        pause_seconds=0.1,
        **wanted["job"],
    )
    hosts = LeadingHost(member, master) if member.number == 0 else FollowingHost(member, master)
    supervise(job, hosts, member, sys.stdout.buffer)


if __name__ == "__main__":
    run_command(main, "supervise", sys.argv[1:])
