"""Tables as the benchmarks write them."""

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """The table, three digits a number."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[f"{v:.3g}" if isinstance(v, float) else v for v in row]
             for row in table.itertuples(index=False)]  # fmt: skip
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
