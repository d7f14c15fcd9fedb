"""Captions as tokens: the byte-pair encoding of CLIP, arXiv:2103.00020, Sec. 2.4.

The vocabulary is the authors' file bpe_simple_vocab_16e6.txt.gz (openai/CLIP, and the packages
open_clip_torch and clip). It is untrusted: its size is checked before memory is taken.
"""

import gzip
import html
import itertools
import re
import unicodedata
import zlib

import numpy as np

from jaxgen.core import method

START, END = 49406, 49407
MERGES = START - 2 * 256  # those that come after the first line; the file has more
MAX_BYTES = 2**23  # of the vocabulary, unpacked
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip_tokenizer(vocab_path, *, context_length=77):
  """tokenize(texts, truncate=False) -> int32 [B, context_length] for a list of B strings.

  Rows are the start, the tokens, the end and zeros. As in the authors' code a text that is longer
  raises ValueError, or with `truncate` is cut before its end. They mend texts with ftfy first;
  here is of that only NFC: curly quotes, ligatures and broken encodings stay what they are.

  Raises ValueError for a file that is not that vocabulary and, when called, for what is not a list
  of strings; FileNotFoundError where none is; ImportError without the package tokenizers.
  """
  method.check_count("context_length", context_length, least=2)
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError("clip_tokenizer needs tokenizers: pip install jaxgen[text]") from error
  merges = _merges(vocab_path)
  letters = _letters()
  words = [*letters, *(f"{x}</w>" for x in letters), *map("".join, merges), *SPECIAL]
  vocab = {word: i for i, word in enumerate(words)}
  if len(vocab) != END + 1 or not {part for pair in merges for part in pair} <= vocab.keys():
    raise ValueError(f"{vocab_path} has merges that repeat or that are not of its letters")
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, end_of_word_suffix="</w>"))
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORD), "removed", invert=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  bpe.add_special_tokens(SPECIAL)

  def tokenize(texts, truncate=False):
    good = isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)
    method.check("texts", texts, good, "a list of strings")
    rows = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(rows, texts, strict=True):
      tokens = [START, *bpe.encode(_clean(text)).ids, END]
      if len(tokens) > context_length:
        if not truncate:
          raise ValueError(f"{text!r} has {len(tokens)} tokens: expected at most {context_length}")
        tokens[context_length - 1 :] = [END]
      row[: len(tokens)] = tokens
    return rows

  return tokenize


def _clean(text):
  text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
  return re.sub(r"\s+", " ", text).strip().lower()


def _letters():
  """The 256 bytes as letters, in the order of their tokens: first those that can be printed."""
  printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
  printed += range(ord("®"), ord("ÿ") + 1)
  return [chr(x) for x in [*printed, *range(256, 512 - len(printed))]]


def _merges(path):
  """[(left, right)] of a vocabulary file, in their order."""
  try:
    with gzip.open(path) as file:
      text = file.read(MAX_BYTES + 1)
    lines = text.decode().split("\n")
  except FileNotFoundError:
    raise
  except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(f"{path} is not a vocabulary: {error}") from error
  pairs = [tuple(line.split()) for line in itertools.islice(lines, 1, MERGES + 1)]
  if len(text) > MAX_BYTES or len(pairs) < MERGES or any(len(pair) != 2 for pair in pairs):
    raise ValueError(
      f"{path} is not a vocabulary: expected {MERGES} merges of two, in {MAX_BYTES} bytes at most"
    )
  return pairs
