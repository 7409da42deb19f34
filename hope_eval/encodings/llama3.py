"""Llama 3's scaling: pairs of long wavelength are interpolated, of short wavelength stay, those between are mixed.

    wavelength > L_train / low_freq_factor: theta_i / factor;   < L_train / high_freq_factor: theta_i

Source: Grattafiori et al., 2024, arXiv 2407.21783 (constants: the authors' released code).
"""

from hope_eval.encodings import Geometry, RopeExtension


class Llama3(RopeExtension):
    """The frequency scaling of Llama 3.1.

    factor:           by how much long wavelengths are stretched.
    low_freq_factor:  turns within the training length below which a pair is interpolated fully.
    high_freq_factor: turns from which on a pair stays as it is.
    """

    source = "2407.21783"
    formula = "interpolate pairs of long wavelength by factor, keep short ones"
    style = ("#b98a5e", "dash-dot-dot", "P")
    limits = {"factor": (1, 1e6), "low_freq_factor": (1e-6, 1e6), "high_freq_factor": (1e-6, 1e6)}
    rope_type = "llama3"

    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0
    ) -> None:
        super().__init__(geometry)
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
