"""oof.csv: a run's predictions for the rows that its folds held out."""

from collections import defaultdict

import pandas as pd

from scenes.console import UserError
from scenes.runs import Run

ABOUT = ["image_name", "label", "fold"]  # the columns before those of the outputs


def read_oof(run: Run) -> pd.DataFrame:
    """Reads oof.csv: the columns of `ABOUT`, then one per output; names and labels are text.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        types = defaultdict(lambda: "float32", image_name="str", label="str", fold="int64")
        table = pd.read_csv(run.oof_file, dtype=types, keep_default_na=False)
        # Set by position: pandas renames a class that has the name of another column.
        table.columns = [*ABOUT, *table.columns[len(ABOUT) :]]
        return table
    except (FileNotFoundError, ValueError) as error:  # pandas raises ValueErrors
        raise UserError(f"{run.oof_file}: missing or damaged ({error}); run the train.py command again") from None
