"""Users to forget: no row of theirs leaves the raw logs, wherever a stage meets one.

Ids are compared after the same cleaning as those of events. `clean_events` drops and counts their rows before
any other rule, so that none comes into a quarantine; `weigh_events` drops what nights before the request had
cleaned; `publish` refuses a list that names one, by a reader of its own (forget_list.py).
"""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.engines.raw import UNREADABLE, mapping, open_raw, unite
from nightjar.stage import Night
from nightjar.stages.cleaning.cells import external_id, text


def forgotten_users(spark: SparkSession, night: Night) -> DataFrame | None:
    """One column, user_id, without repeats; None where no list is declared.

    Raises InputError for a list that cannot be read: nobody is remembered by accident.
    """
    frames = []
    for at, source in enumerate(night.config.privacy.forget):
        files = night.raw["forget_raw"][f"forget{at}"]
        table = open_raw(spark, source, files, f"privacy.forget.{at}", ("user_id",))
        frames += [group.frame.filter(~F.col(UNREADABLE)) for group in table.groups(mapping(source))]
    if not night.config.privacy.forget:
        return None
    together = unite(frame.select(external_id(text(F.col("user_id"))).alias("user_id")) for frame in frames)
    if together is None:  # all files are empty
        together = spark.createDataFrame([], "user_id string")
    return together.filter(F.col("user_id").isNotNull()).distinct()
