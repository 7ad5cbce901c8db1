"""The images of one attack on one model, with what verification found about them."""

import dataclasses
import io
import os
from collections.abc import Mapping

import numpy as np

from abs_model.evaluation.tables import AttackSettings, Row
from abs_model.evaluation.verification import Verification
from abs_model.files import atomic_write_bytes


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The images of one attack on one model, verified.

    Attributes:
        settings: The attack.
        clean: float32 (N, height, width, channels).
        labels: Integers (N,).
        clean_predictions: int32 (N,).
        adversarial: As `clean`: what the attack returned.
        claimed: bool (N,): what the attack reported as adversarial.
        verification: What holds of `adversarial`.
    """

    settings: AttackSettings
    clean: np.ndarray
    labels: np.ndarray
    clean_predictions: np.ndarray
    adversarial: np.ndarray
    claimed: np.ndarray
    verification: Verification

    @property
    def distances(self) -> np.ndarray:
        """float64 (N,): 0 for clean errors, infinity where nothing verified was found."""
        clean_errors = self.clean_predictions != self.labels
        return np.where(clean_errors, 0.0, self.verification.adversarial_distances)

    def row(self, model: str, seconds: Mapping[str, float]) -> Row:
        """Its row of the table. An image counts as correct only at infinite distance."""
        return Row(
            model=model,
            attack=self.settings,
            num_images=len(self.labels),
            num_correct=int(np.sum(np.isinf(self.distances))),
            seconds=seconds,
            num_clean_errors=int(np.sum(self.clean_predictions != self.labels)),
            num_claimed=int(np.sum(self.claimed)),
            num_rejected=self.verification.num_rejected(self.claimed),
            rejections=self.verification.rejections(self.claimed),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all arrays, with what verification found, to an .npz file, atomically."""
        content = io.BytesIO()
        np.savez_compressed(
            content,
            clean=self.clean,
            labels=self.labels,
            clean_predictions=self.clean_predictions,
            images=self.adversarial,
            claimed=self.claimed,
            verified=self.verification.verified,
            **dataclasses.asdict(self.verification),
        )
        atomic_write_bytes(path, content.getvalue())
