"""Noise belongs to the example: not to its batch, its device or its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxgen import noise
from jaxgen.core import axis, parallel

KEY = jax.random.key(3)
DRAWS = {
  "normal": lambda k: noise.normal(k, (3,)),
  "uniform": lambda k: noise.uniform(k, (3,), -1.0, 2.0),
  "randint": lambda k: noise.randint(k, 0, 10, (3,)),
  "bernoulli": lambda k: noise.bernoulli(k, 0.3, (3,)),
  "rademacher": lambda k: noise.rademacher(k, (3,)),
  "split": lambda k: noise.normal(noise.split(k, 3)[1], (3,)),
  "fold_in": lambda k: noise.normal(noise.fold_in(k, 7), (3,)),
  "stream": lambda k: noise.stream(k)((3,)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_row_draws_the_same_alone_and_in_any_batch(draw):
  whole = draw(noise.rows(KEY, 8))
  np.testing.assert_array_equal(draw(noise.rows(KEY, 2, first=5)), whole[5:7])
  np.testing.assert_array_equal(draw(noise.rows(KEY, 1, first=3))[0], whole[3])


def test_rows_on_devices_are_the_rows_of_one_device():
  """Acceptance test 20: draws do not depend on the topology."""

  def local(key):
    return noise.normal(noise.rows(key, 2, axis.first_row(2)), (5,))

  spread = jax.shard_map(local, mesh=parallel.mesh(), in_specs=P(), out_specs=P(axis.NAME))
  np.testing.assert_array_equal(jax.jit(spread)(KEY), noise.normal(noise.rows(KEY, 8), (5,)))


def test_the_shared_key_is_the_same_on_every_device_and_no_rows():
  def local(key):
    keys = noise.rows(key, 2, axis.first_row(2))
    return jax.random.key_data(noise.shared(keys))[None]

  spread = jax.shard_map(
    local, mesh=parallel.mesh(), in_specs=P(), out_specs=P(axis.NAME), check_vma=False
  )
  data = np.asarray(jax.jit(spread)(KEY))
  assert (data == data[0]).all()
  one = jax.random.key_data(noise.shared(noise.rows(KEY, 8)))
  np.testing.assert_array_equal(data[0], one)
  rows = {tuple(k) for k in np.asarray(jax.random.key_data(noise.rows(KEY, 100)))}
  assert tuple(np.asarray(one)) not in rows


def test_no_two_rows_steps_or_splits_share_a_key():
  """Acceptance test 20: no duplicates in 10^4, over rows, `fold_in` and `split`."""
  keys = noise.rows(KEY, 1000)
  groups = [keys, *noise.split(keys, 4), *(noise.fold_in(keys, i) for i in range(5))]
  data = np.concatenate([jax.random.key_data(k) for k in groups])
  assert len(np.unique(data, axis=0)) == len(data) == 10_000


def test_a_stream_draws_new_noise_at_every_call():
  draw = noise.stream(noise.rows(KEY, 4))
  assert not jnp.array_equal(draw((3,)), draw((3,)))


def test_moments():
  keys = noise.rows(KEY, 4000)
  np.testing.assert_allclose(noise.normal(keys, (5,)).std(), 1.0, atol=0.02)
  np.testing.assert_allclose(noise.rademacher(noise.fold_in(keys, 1), (5,)).mean(), 0.0, atol=0.03)
  np.testing.assert_allclose(noise.bernoulli(noise.fold_in(keys, 2), 0.3).mean(), 0.3, atol=0.03)
  u = noise.uniform(noise.fold_in(keys, 3), (5,), -1.0, 2.0)
  assert -1.0 <= u.min() < -0.99 and 1.99 < u.max() < 2.0
  assert set(np.unique(noise.randint(noise.fold_in(keys, 4), 2, 5))) == {2, 3, 4}
