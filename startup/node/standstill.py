"""Makes a process stand still for a while: `python standstill.py PIDFD SECONDS`, a process of its own that nobody has to remember.

So whatever was stopped goes on again, whoever else dies meanwhile. Only the standard library: it starts in 10 ms."""

import signal
import sys
import time


def main() -> None:
    pidfd, for_s = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        time.sleep(for_s)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)


if __name__ == "__main__":
    main()
