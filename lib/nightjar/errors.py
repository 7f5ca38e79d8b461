"""Every exception Nightjar raises on purpose.

NightjarError                one clear sentence: what, where, what to do; the command exits with 2
├── ConfigError              conf/*.yaml or --set is wrong: unknown key, bad value, missing file
├── InputError               raw data cannot be read at all (single bad rows go to quarantine instead)
├── NotCommitted             a table a stage reads has no commit for that date: names the stage to run
├── ContractError            data breaks the contract of its table (tables.py); nothing is committed
├── StorageError             the store cannot be read or written: permissions, disk full, a damaged file
├── StageError               a stage failed; what was finished stays and the next run resumes
│   └── PartFailed           one part kept failing after all retries; names the part and the last reason
├── GateError                a publish gate refused: committed, not published; yesterday's list stays live
└── NightLocked              another night is writing the same date under the same root
"""


class NightjarError(Exception):
    """Base of every error raised on purpose; its text is one sentence for a person."""


class ConfigError(NightjarError):
    """The configuration is wrong: an unknown key, a bad value, a missing file."""


class InputError(NightjarError):
    """Raw input cannot be read at all; single bad rows go to quarantine instead."""


class NotCommitted(NightjarError):
    """A table that a stage reads has no commit for the date asked for."""


class ContractError(NightjarError):
    """Data breaks the contract of its table; nothing of it is committed."""


class StorageError(NightjarError):
    """The store cannot be read or written: permissions, a full disk, a damaged file."""


class StageError(NightjarError):
    """A stage failed; finished parts stay and the next run resumes from them."""


class PartFailed(StageError):
    """One part kept failing after all retries."""


class GateError(NightjarError):
    """A publish gate refused the night; the last published list stays live."""


class NightLocked(NightjarError):
    """Another night is writing the same date under the same root."""
