"""The predictor ``presage`` (Debian packages presage and libpresage-data), retrained on our text.

Its own English database is tiny, so ``text2ngram`` counts the training users' messages for it, and each
user's history for a second database: two n-gram predictors combined by presage's own policy, with its
default weights. Presage does not predict symbols and cuts words at apostrophes, so it is given words only,
with a letter in place of inner apostrophes; a made-up word twice tells it where a message begins.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from pfl_mobile.errors import DataError, MissingDependencyError
from pfl_mobile.text.pieces import is_symbol

_COUNT, _PREDICT = "text2ngram", "presage_demo_text"
_BEGIN = "xbosx"
_LETTER = "\u02bc"
# The prompt prints the whole text typed so far: start anew before that gets slow.
_RESTART_CHARACTERS = 4000

_CONFIG = """<?xml version="1.0" encoding="UTF-8" standalone="no" ?>
<Presage>
<PredictorRegistry><LOGGER>ERROR</LOGGER><PREDICTORS>{names} Recency</PREDICTORS></PredictorRegistry>
<ContextTracker><LOGGER>ERROR</LOGGER><SLIDING_WINDOW_SIZE>80</SLIDING_WINDOW_SIZE>
<LOWERCASE_MODE>yes</LOWERCASE_MODE><ONLINE_LEARNING>no</ONLINE_LEARNING></ContextTracker>
<Selector><LOGGER>ERROR</LOGGER><SUGGESTIONS>10</SUGGESTIONS><REPEAT_SUGGESTIONS>yes</REPEAT_SUGGESTIONS>
<GREEDY_SUGGESTION_THRESHOLD>0</GREEDY_SUGGESTION_THRESHOLD></Selector>
<PredictorActivator><LOGGER>ERROR</LOGGER><PREDICT_TIME>1000</PREDICT_TIME>
<MAX_PARTIAL_PREDICTION_SIZE>60</MAX_PARTIAL_PREDICTION_SIZE>
<COMBINATION_POLICY>Meritocracy</COMBINATION_POLICY></PredictorActivator>
<ProfileManager><LOGGER>ERROR</LOGGER><AUTOPERSIST>false</AUTOPERSIST></ProfileManager>
<Predictors>{predictors}
<Recency><PREDICTOR>RecencyPredictor</PREDICTOR><LOGGER>ERROR</LOGGER><LAMBDA>1</LAMBDA><N_0>1</N_0>
<CUTOFF_THRESHOLD>20</CUTOFF_THRESHOLD></Recency>
</Predictors></Presage>
"""
_PREDICTOR = """
<{name}><PREDICTOR>SmoothedNgramPredictor</PREDICTOR><LOGGER>ERROR</LOGGER><DBFILENAME>{path}</DBFILENAME>
<DELTAS>0.01 0.1 0.89</DELTAS><LEARN>false</LEARN>
<DatabaseConnector><LOGGER>ERROR</LOGGER></DatabaseConnector></{name}>"""


def require() -> None:
    """Check that presage is installed.

    Raises:
        MissingDependencyError: its commands are not on the path.
    """
    missing = [c for c in (_COUNT, _PREDICT) if shutil.which(c) is None]
    if missing:
        raise MissingDependencyError(
            f"presage's {' and '.join(missing)} not found", mend="apt-get install presage libpresage-data"
        )


def _words(pieces: Iterable[str]) -> list[str]:
    return [_BEGIN, _BEGIN, *(p.replace("'", _LETTER) for p in pieces if not is_symbol(p))]


def count(messages: Iterable[Sequence[str]], folder: Path, name: str) -> Path:
    """Write the database of orders 1 to 3 of these messages to ``folder/name.db``.

    Raises:
        MissingDependencyError: presage is not installed.
        DataError: text2ngram failed.
    """
    require()
    text, database = folder / f"{name}.txt", folder / f"{name}.db"
    database.unlink(missing_ok=True)
    text.write_text("".join(" ".join(_words(m)) + "\n" for m in messages), encoding="utf-8")
    for order in "123":
        command = [_COUNT, "-n", order, "-l", "-a", "-f", "sqlite", "-o", str(database), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not database.exists():
            raise DataError(
                f"text2ngram failed: {done.stderr.strip()}", mend="check the presage installation"
            )
    return database


class Presage:
    """A running presage; use it as a context manager, or call :meth:`close`.

    Args:
        databases: from :func:`count`, the global one first, then the user's.
        folder: for its configuration.
    """

    def __init__(self, databases: Sequence[Path], folder: Path) -> None:
        """Write the configuration and start presage."""
        require()
        names = [f"Ngrams{i}" for i in range(len(databases))]
        predictors = "".join(_PREDICTOR.format(name=n, path=p) for n, p in zip(names, databases, strict=True))
        self._config = folder / "presage.xml"
        self._config.write_text(_CONFIG.format(names=" ".join(names), predictors=predictors))
        self._process: subprocess.Popen[str] | None = None
        self._typed, self._length = "", 0
        self._offered: list[str] = []

    def __enter__(self) -> Presage:
        """Nothing to do: presage starts with the first question."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop presage."""
        self.close()

    def close(self) -> None:
        """Stop presage."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._typed, self._length = None, "", 0

    def suggest(self, context: Sequence[str], prefix: str, k: int = 3) -> list[str]:
        """At most ``k`` words (9 are the most) that may follow, best first."""
        text = " ".join(_words(context)) + " " + prefix.replace("'", _LETTER)
        if text != self._typed:
            if text.startswith(self._typed) and self._process is not None:
                self._type(text[len(self._typed) :])
            else:
                if self._length > _RESTART_CHARACTERS:
                    self.close()
                self._type(" " + text)
            self._typed = text
        return [w for w in self._offered if w != _BEGIN][:k]

    def _type(self, letters: str) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [_PREDICT, "-c", str(self._config), "-s", "10"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        out, answer = self._process.stdin, self._process.stdout
        assert out is not None
        assert answer is not None
        with contextlib.suppress(BrokenPipeError):
            out.write(letters + "\n")
            out.flush()
        lines: list[str] = []
        for line in answer:
            said = line.removeprefix("> ").strip()
            if said.startswith("-- Context:"):
                break
            # The prompt ends what was printed before, the greeting above all.
            lines = [said] if line.startswith("> ") else [*lines, said]
        else:
            raise DataError("presage stopped", mend="check the presage installation")
        self._length += len(letters)
        self._offered = [w.replace(_LETTER, "'") for w in lines if w]
