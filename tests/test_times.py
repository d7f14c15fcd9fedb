"""Training times: densities, inverse distribution functions, the shift, and the public numbers."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jaxgen import noise, paths
from jaxgen.objectives import times

# Densities in the papers' time, 1 at the noise: arXiv:2403.03206, Eq. 19-21; arXiv:2405.20320.
PDFS = {
  "uniform": lambda t: np.ones_like(t),
  "logit_normal": lambda t, m=0.0, s=1.0: (
    np.exp(-((special.logit(t) - m) ** 2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi) * t * (1 - t))
  ),
  "cosmap": lambda t: 2.0 / (np.pi - 2.0 * np.pi * t + 2.0 * np.pi * t**2),
  "u_shaped": lambda t, a=4.0: (
    a * (np.exp(a * t) + np.exp(a * (1.0 - t))) / (2.0 * np.expm1(a))  # as rfpp draws them
  ),
}
CASES = [
  ("uniform", {}),
  ("logit_normal", {}),
  ("logit_normal", {"m": 0.5, "s": 0.6}),
  ("logit_normal", {"m": -1.0, "s": 1.0}),
  ("mode", {}),
  ("mode", {"s": -0.7}),
  ("cosmap", {}),
  ("u_shaped", {}),
  ("u_shaped", {"a": 1.0}),
]
every_case = pytest.mark.parametrize("name, options", CASES, ids=str)


def f_mode(u, s=1.29):
  """Eq. 20 as the paper writes it."""
  return 1.0 - u - s * (np.cos(np.pi * u / 2.0) ** 2 - 1.0 + u)


def cdf(name, options, t):
  """Of our time, numerically: P(1 - T <= t)."""
  if name == "mode":  # u with f_mode(u) = 1 - t, by interpolation: f_mode falls
    u = np.linspace(0.0, 1.0, 200_001)
    return np.interp(t, 1.0 - f_mode(u, **options), u)
  pdf = functools.partial(PDFS[name], **options)
  x = np.linspace(1e-6, 1.0 - 1e-6, 400_001)
  total = np.concatenate([[0.0], integrate.cumulative_trapezoid(pdf(x), x)])
  np.testing.assert_allclose(total[-1], 1.0, atol=1e-5)  # PDFS are densities
  return 1.0 - np.interp(1.0 - t, x, total)


@every_case
@pytest.mark.evidence("R03", "M")
def test_inverse_of_the_distribution_function(name, options):
  u = np.linspace(0.01, 0.99, 99).astype(np.float32)
  t = np.asarray(times.by_name(name, options)(u), np.float64)
  rises = t[-1] > t[0]
  assert (np.diff(t) > 0.0).all() if rises else (np.diff(t) < 0.0).all()
  np.testing.assert_allclose(cdf(name, options, t), u if rises else 1.0 - u, atol=4e-5)


@every_case
@pytest.mark.evidence("R03", "M")
def test_histogram_of_draws(name, options):
  keys = jax.random.split(jax.random.key(0), 20_000)
  t = jax.jit(lambda keys: times.by_name(name, options)(noise.uniform(keys)))(keys)
  edges = np.linspace(0.0, 1.0, 11)
  found = np.histogram(t, edges)[0] / len(t)
  expected = np.diff(cdf(name, options, edges))
  np.testing.assert_allclose(found, expected, atol=0.012)  # 4 standard errors at p = 1/4


@every_case
def test_ends_are_finite_in_float32(name, options):
  u = np.concatenate([[0.0, 2.0**-24, 1e-45, 1.0 - 2.0**-24, 1.0], np.linspace(0, 1, 100_001)])
  t = np.asarray(jax.jit(times.by_name(name, options))(u.astype(np.float32)))
  assert t.dtype == np.float32 and np.isfinite(t).all() and (t >= 0.0).all() and (t <= 1.0).all()
  left = 1e-5 if name == "u_shaped" else 0.0  # so much of each end is left out
  np.testing.assert_allclose(sorted([t[0], t[4]]), [left, 1.0 - left], atol=1.2e-7)


def test_symmetry():
  u = np.linspace(0.0, 1.0, 101).astype(np.float32)
  for name, options in [c for c in CASES if not c[1].get("m")]:
    t = times.by_name(name, options)
    np.testing.assert_allclose(t(1.0 - u), 1.0 - t(u), atol=2e-6, err_msg=name)
  assert (times.logit_normal(u, m=0.5)[1:-1] < times.logit_normal(u)[1:-1]).all()  # to the noise


def test_shapes_of_the_densities():
  """How often t is in the middle half: more often, less often, as often as not."""
  u = np.linspace(0.0, 1.0, 10_001).astype(np.float32)
  middle = lambda name, **options: (abs(times.by_name(name, options)(u) - 0.5) < 0.25).mean()
  # P(|z| < log 3) of a normal z; arctan(3) of Eq. 21; 1 / (2 cosh(a / 4)) of the U.
  np.testing.assert_allclose(middle("logit_normal"), special.erf(np.log(3) / 2**0.5), atol=1e-3)
  np.testing.assert_allclose(middle("cosmap"), 4 / np.pi * np.arctan(3) - 1, atol=1e-3)
  np.testing.assert_allclose(middle("u_shaped"), 0.5 / np.cosh(1.0), atol=1e-3)
  assert middle("mode") > 0.55 and middle("mode", s=-0.7) < 0.45


@pytest.mark.evidence("R03", "G")
def test_densities_of_diffusers():
  v, close = golden.load("sd3_timestep_densities")
  close(1.0 - times.mode(v["in.u"], s=1.29), "mode")
  close(1.0 - times.uniform(1.0 - v["in.u"]), "uniform")
  with jax.enable_x64(True):  # u of a large z is 1 in float32
    u = special.ndtr(v["in.z"].astype(np.float64))
    close(1.0 - times.logit_normal(u, m=0.3, s=1.2), "logit_normal")


@pytest.mark.evidence("R03", "M")
def test_cosmap_has_the_signal_to_noise_ratio_of_the_cosine_path():
  """Eq. 21: the root of 1 / snr is tan(pi u / 2) on both."""
  u = np.linspace(0.05, 0.95, 19).astype(np.float32)
  cosine = paths.Cosine(log_snr_min=-60.0, log_snr_max=60.0)  # its ends do not count here
  log_snr = lambda path, t: paths.log_snr(path, jnp.asarray(t))
  ours = log_snr(paths.Linear(), times.cosmap(u))
  np.testing.assert_allclose(ours, log_snr(cosine, u), atol=1e-4)


# The shift


@pytest.mark.evidence("R03", "G")
def test_shift_of_the_authors_code():
  v, close = golden.load("sd3_sigmas_shift3")
  sigma = lambda timestep: 1.0 - times.shift(1.0 - jnp.asarray(timestep) / 1000.0, alpha=3.0)
  close(sigma(np.arange(1.0, 1001.0)), "sigmas", atol=2e-6)  # 1 - t loses digits near sigma = 0
  close(sigma(v["in.timestep"]), "some", atol=2e-6)


@pytest.mark.evidence("R03", "M")
def test_shift_keeps_the_uncertainty():
  """Eq. 22-23: n equal pixels are as uncertain at t, sigma / (alpha sqrt n), as m at its shift."""
  m, n = 1024**2, 256**2
  t = np.linspace(0.05, 0.95, 19)
  error = lambda t, pixels: (1.0 - t) / t / np.sqrt(pixels)
  shifted = np.asarray(times.shift(t.astype(np.float32), alpha=(m / n) ** 0.5), np.float64)
  np.testing.assert_allclose(error(shifted, m), error(t, n), rtol=1e-5)
  assert (shifted < t).all()


def test_shift_is_a_group_with_fixed_ends():
  t = np.linspace(0.0, 1.0, 101).astype(np.float32)
  np.testing.assert_array_equal(times.shift(t, alpha=1.0), t)
  np.testing.assert_allclose(times.shift(times.shift(t, alpha=3.0), alpha=1 / 3.0), t, atol=1e-6)
  for alpha in (0.1, 3.0, 7.3):
    ends = times.shift(t, alpha=alpha)[np.array([0, -1])]
    np.testing.assert_array_equal(ends, [0.0, 1.0])


# Errors


CALLS = [
  ("times='normal': expected one of cosmap, logit_normal, mode", ("normal", {})),
  ("times=['mode']: expected one of", (["mode"], {})),
  ("times_args.scale=1.0: mode takes no such keyword", ("mode", {"scale": 1.0})),
  ("times_args.u=1.0: uniform takes no such keyword", ("uniform", {"u": 1.0})),
  ("m=nan: expected a finite number", ("logit_normal", {"m": float("nan")})),
  ("s=0: expected a finite number above 0", ("logit_normal", {"s": 0})),
  ("s=2.0: expected -1 to 1.7519", ("mode", {"s": 2.0})),
  ("s=-1.1: expected -1 to", ("mode", {"s": -1.1})),
  ("a=0.0: expected a finite number above 0", ("u_shaped", {"a": 0.0})),
]


@pytest.mark.parametrize("words, args", CALLS, ids=[words for words, _ in CALLS])
def test_bad_input(words, args):
  with pytest.raises(ValueError, match=re.escape(words)):
    times.by_name(*args)


def test_bad_shift():
  with pytest.raises(ValueError, match="alpha=0"):
    times.shift(jnp.ones(2), alpha=0)
