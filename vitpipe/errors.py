"""Every error that vitpipe raises on purpose.

::

    VitpipeError
      ConfigError            the configuration or the call is wrong                          exit code 2
        WorkspaceError       the workspace cannot be written, is full, or is in use          exit code 2
      DataError              the data are wrong: what, where, what to do                     exit code 3
        UnreadableSource     one source cannot be read; it is quarantined, the run goes on
        LabelError           the label table does not fit the sources
        SplitError           groups, classes and splits do not fit together
        LeakageError         one group, or the same pixels, stand in two splits
        TooManyRejected      more than the stated share of the sources was rejected
      ContractError          a stored thing does not fit its user (channels, units, digest)  exit code 3
      TrainingFailed         the training child ended without a result                       exit code 3
      GateRefused            the promotion gate said no                                      exit code 4
      TransientError         may pass by itself: the only error that is retried              exit code 3

What is wrong with one source among many is not raised but kept as a :class:`vitpipe.records.Rejected` row.
"""

from __future__ import annotations


class VitpipeError(Exception):
    """Base of all errors; its text is a sentence for the user: what, where, what to do."""

    exit_code = 3


class ConfigError(VitpipeError):
    """The configuration or the call is wrong."""

    exit_code = 2


class WorkspaceError(ConfigError):
    """The workspace cannot be used: read-only, full, or held by another run."""


class DataError(VitpipeError):
    """The data are wrong."""


class UnreadableSource(DataError):
    """One source cannot be read.

    Args:
        code: stable upper-case code, such as ``TRUNCATED``.
        reason: a sentence that names what was found, what was expected and what to do.
        uri: the file.
    """

    def __init__(self, code: str, reason: str, uri: str) -> None:
        super().__init__(code, reason, uri)
        self.code = code
        self.reason = reason
        self.uri = uri

    def __str__(self) -> str:
        """Give the code, the file and the sentence."""
        return f"{self.code}: {self.uri}: {self.reason}"


class LabelError(DataError):
    """The labels do not fit the sources."""


class SplitError(DataError):
    """Groups, classes and splits do not fit together."""


class LeakageError(DataError):
    """One group, or the same pixels, stand in two splits."""


class TooManyRejected(DataError):
    """More than the stated share of the sources was rejected."""


class ContractError(VitpipeError):
    """A stored thing does not fit the one who uses it."""


class TrainingFailed(VitpipeError):
    """The training child ended without a result."""


class GateRefused(VitpipeError):
    """The promotion gate said no."""

    exit_code = 4


class TransientError(VitpipeError):
    """A failure that may pass by itself, such as a server that does not answer."""
