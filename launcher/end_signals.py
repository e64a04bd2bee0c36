"""The signals that tell the launcher to end."""

import signal


def end_signals() -> list[signal.Signals]:
    """Those that may have handlers: a hang-up that is ignored, as by nohup, stays so."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals
