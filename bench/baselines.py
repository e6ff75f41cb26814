"""What a guess and a linear model reach on a folder of photographs, for comparison with a ViT trained on it.

    python bench/baselines.py DATA

The same parts as `vitrine train DATA`: logistic regression on 32 x 32 pixels learns from training and validation
pictures together, its strength of regularisation chosen by five-fold cross-validation there, and is measured on the
test part. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitrine.config.options import DataConfig
from vitrine.data.scan import scan
from vitrine.data.sources import Source, open_source
from vitrine.data.splits import split
from vitrine.evaluate.metrics import share
from vitrine.machine.device import versions

SIDE = 32


def pixels(source: Source, indices: np.ndarray) -> np.ndarray:
    """Rows of SIDE x SIDE x 3 numbers in [0, 1]."""
    rows = [source.picture(int(i)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for i in indices]
    return np.stack([np.asarray(row, dtype=np.float32).reshape(-1) / 255 for row in rows])


def main() -> None:
    """Measure both on the data named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    asked = parser.parse_args()
    settings = DataConfig(source=asked.data)
    source = open_source(settings)
    parts = split(source, scan(source, settings).bad, settings)
    learn = np.concatenate([parts.train, parts.validation])
    model = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]},
        cv=5,
    )
    model.fit(pixels(source, learn), source.labels[learn])
    right = model.predict(pixels(source, parts.test)) == source.labels[parts.test]
    most = np.bincount(source.labels[learn]).argmax()
    result = {
        "data": asked.data,
        "logistic_regression": share(int(right.sum()), len(right)).as_json(),
        "majority": share(int((source.labels[parts.test] == most).sum()), len(right)).as_json(),
        "chosen": model.best_params_,
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
