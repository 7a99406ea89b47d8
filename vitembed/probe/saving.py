"""Probes as files: ``probe.safetensors`` holds the weights as arrays and everything else as JSON. Never a pickle.

A file from elsewhere is not trusted: it is read without running anything, its sizes are compared with what is there,
and it answers only to the encoder whose fingerprint it names.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import erf

from vitembed.errors import DataError, MismatchError, printable
from vitembed.outputs import PROBE, write_output
from vitembed.probe.evaluation.study import Study

FORMAT_VERSION = 2
"""Version 2 is a probe with a hidden layer, kind ``mlp``; linear ones are written as version 1, as ever."""
_KINDS = {1: "linear", 2: "mlp"}
_ARRAYS = {"linear": ("coef", "intercept"), "mlp": ("coef", "intercept", "hidden_coef", "hidden_intercept")}
_KEY = "vitembed_probe"
_LARGEST_HEADER = 100_000_000  # bytes; the limit that safetensors itself sets


class HiddenLayer(NamedTuple):
    """The first layer of an MLP, with GELU behind it."""

    coef: np.ndarray
    """float64 ``[h, d]``."""
    intercept: np.ndarray
    """float64 ``[h]``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedProbe:
    """A classifier on the vectors of one encoder: linear, or an MLP with one hidden layer.

    Raises:
        DataError: If weights, classes and threshold do not fit together.
    """

    classes: list[Any]
    """All text or all whole numbers; in the order of the probabilities."""
    coef: np.ndarray
    """float64 ``[k, d]``, of an MLP ``[k, h]``; one row per class, or a single row for the second of two classes."""
    intercept: np.ndarray
    """float64 ``[k]``."""
    fingerprint: str
    """Of the encoder whose vectors it takes."""
    threshold: float | None
    """Least probability of an answer that counts, in 0..1; None: none does. See ``evaluation.abstain``."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-safe: which model, and what the probe was measured to be worth."""
    hidden: HiddenLayer | None = None
    """What comes before in an MLP, as ``vitembed finetune`` trains it."""

    def __post_init__(self) -> None:
        num, rows = len(self.classes), 1 if len(self.classes) == 2 else len(self.classes)
        kind = type(self.classes[0]) if num else str
        if num < 2 or kind not in (str, int) or any(type(label) is not kind for label in self.classes):
            raise DataError(f"a probe needs two or more classes, all text or all whole numbers, got {num}")
        if len(set(self.classes)) < num:
            raise DataError("two classes of the probe have the same name")
        coef, intercept = (np.ascontiguousarray(array, dtype=np.float64) for array in (self.coef, self.intercept))
        if coef.ndim != 2 or coef.shape[1] == 0 or coef.shape[0] != rows or intercept.shape != (rows,):
            raise DataError(
                f"weights {list(coef.shape)} and intercept {list(intercept.shape)} do not fit {num} classes: "
                f"expected [{rows}, d] and [{rows}]"
            )
        hidden = self.hidden and HiddenLayer(*(np.ascontiguousarray(part, dtype=np.float64) for part in self.hidden))
        if hidden is not None:
            width, shape = coef.shape[1], hidden.coef.shape
            if len(shape) != 2 or shape[0] != width or shape[1] == 0 or hidden.intercept.shape != (width,):
                raise DataError(
                    f"hidden weights {list(shape)} and intercept {list(hidden.intercept.shape)} do not fit weights "
                    f"{list(coef.shape)}: expected [{width}, d] and [{width}]"
                )
        if not all(np.isfinite(array).all() for array in (coef, intercept, *(hidden or ()))):
            raise DataError("the weights hold NaN or infinity")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"threshold {self.threshold:g}: expected a number in 0..1, or none")
        object.__setattr__(self, "coef", coef)
        object.__setattr__(self, "intercept", intercept)
        object.__setattr__(self, "hidden", hidden)

    @property
    def dim(self) -> int:
        """Width of the vectors it takes."""
        return int((self.coef if self.hidden is None else self.hidden.coef).shape[1])

    @property
    def kind(self) -> str:
        """``linear`` or ``mlp``."""
        return "linear" if self.hidden is None else "mlp"

    def predict_proba(self, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """Probability of each class, in the order of ``classes``.

        Raises:
            DataError: If the vectors are of another width, or the weights so large that no probability comes out.
        """
        if vectors.shape[1] != self.dim:
            raise DataError(f"the probe takes {self.dim}-d vectors, these have {vectors.shape[1]} numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            features = vectors.astype(np.float64)
            if self.hidden is not None:
                features = _gelu(features @ self.hidden.coef.T + self.hidden.intercept)
            logits = features @ self.coef.T + self.intercept
        if not np.isfinite(logits).all():
            raise DataError("the probe's weights are too large for these vectors: the file is damaged or made up")
        if len(self.classes) == 2:  # one column of logits, for the second class
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        prob: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
        prob /= prob.sum(axis=1, keepdims=True)
        return prob

    def check_fingerprint(self, fingerprint: str, name: str) -> None:
        """Refuse an encoder that the probe was not made for.

        Raises:
            MismatchError: If its fingerprint is another; it says which model the probe belongs to.
        """
        if fingerprint != self.fingerprint:
            model = self.meta.get("model")
            theirs = f"{printable(model)} " if isinstance(model, str) and model else ""
            raise MismatchError(
                f"the probe belongs to another model: it was made for {theirs}(fingerprint {self.fingerprint[:12]}), "
                f"this is {printable(name)} ({fingerprint[:12]}); name the right one with --model, or probe anew"
            )

    @classmethod
    def of(cls, study: Study, meta: dict[str, Any]) -> SavedProbe:
        """The very linear probe that was measured, with the threshold that was found on its test images.

        Args:
            study: Of ``Embeddings`` with a fingerprint.
            meta: JSON-safe facts to keep, beside its scores.

        Raises:
            DataError: If the vectors are of unknown origin, so that nothing could be classified safely.
        """
        if not study.fingerprint:
            raise DataError("a probe can be saved only for vectors with a fingerprint, as embed writes them")
        linear, report = study.fitted.linear, study.report
        worth = {
            "num_train": report.num_train,
            "num_test": report.num_test,
            "C": report.C,
            "scores": report.linear.to_dict(),
            "abstain": study.abstain.to_dict(),
            "seed": study.seed,
        }
        return cls(
            classes=[study.fitted.names[number] for number in linear.classes_.tolist()],
            coef=linear.coef_,
            intercept=linear.intercept_,
            fingerprint=study.fingerprint,
            threshold=study.abstain.threshold,
            meta={**meta, **worth},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; a probe that is there is replaced whole or not at all.

        Raises:
            DataError: If it cannot be written, or something else is there.
        """
        from safetensors.numpy import save

        header = {
            "format_version": 1 if self.hidden is None else FORMAT_VERSION,
            "kind": self.kind,
            "classes": self.classes,
            "fingerprint": self.fingerprint,
            "threshold": self.threshold,
            "meta": self.meta,
        }
        arrays = {"coef": self.coef, "intercept": self.intercept}
        if self.hidden is not None:
            arrays |= {"hidden_coef": self.hidden.coef, "hidden_intercept": self.hidden.intercept}
        data = save(arrays, metadata={_KEY: json.dumps(header)})
        write_output(path, PROBE, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SavedProbe:
        """Read what ``save`` wrote.

        Raises:
            DataError: If there is no such file, or it is damaged, of a newer format, or no probe at all.
        """
        name = printable(path)
        if not Path(path).is_file():
            raise DataError(f"{name}: no such file: expected what vitembed probe --save wrote")
        try:
            return cls(**_read(Path(path)))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        except Exception as error:  # on damaged bytes the parsers raise whatever comes: it is the file's fault
            reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])[:120]
            raise DataError(f"{name}: not a readable probe file: {reason}") from error


def _read(path: Path) -> dict[str, Any]:
    """Arguments of ``SavedProbe``, each of its type; anything may be raised."""
    from safetensors import safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or length > min(size - 8, _LARGEST_HEADER):
            raise DataError("not a probe file: expected what vitembed probe --save wrote")
    with safe_open(path, framework="numpy") as file:  # maps the file: nothing is read before it is asked for
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise DataError("not a probe file, but safetensors of another kind: expected what probe --save wrote")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise DataError("its header is no JSON object")
        version, kind = header.get("format_version"), header.get("kind")
        if type(version) is not int or _KINDS.get(version) != kind:
            known = " and ".join(f"{number} of kind {name!r}" for number, name in _KINDS.items())
            raise DataError(
                f"format {version!r} of kind {kind!r} is not one that this vitembed reads ({known}): upgrade vitembed"
            )
        names = _ARRAYS[_KINDS[version]]
        found = {key: header.get(key) for key in ("classes", "fingerprint", "threshold", "meta")}
        for key, kinds in (
            ("classes", (list,)), ("fingerprint", (str,)), ("threshold", (int, float, type(None))), ("meta", (dict,)),
        ):  # fmt: skip
            if not isinstance(found[key], kinds) or isinstance(found[key], bool):
                raise DataError(f"its {key} are not what a probe has")
        if set(file.keys()) != set(names):
            raise DataError(f"arrays {', '.join(sorted(file.keys())) or 'none'}: expected {' and '.join(names)}")
        shapes = {key: file.get_slice(key) for key in names}
        if any(part.get_dtype() != "F64" for part in shapes.values()):
            raise DataError("its arrays are not float64")
        if found["threshold"] is not None:
            found["threshold"] = float(found["threshold"])
        arrays = {key: file.get_tensor(key) for key in names}
    hidden = HiddenLayer(arrays["hidden_coef"], arrays["hidden_intercept"]) if kind == "mlp" else None
    return {**found, "coef": arrays["coef"], "intercept": arrays["intercept"], "hidden": hidden}


def _gelu(x: np.ndarray) -> np.ndarray:
    """Exact GELU, as ``torch.nn.GELU`` (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    y: np.ndarray = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return y
