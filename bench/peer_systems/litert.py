"""LiteRT: a signature that trains, written with TensorFlow's converter, of LiteRT's own operators alone.

Its guide to training on devices puts operators of TensorFlow into the file (``SELECT_TF_OPS``); that was tried with
the CNN: TensorFlow's interpreters of 2.19 and 2.21 do not run them in Python.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from peer_systems import given
from peer_systems.models import Workload
from peer_systems.running import Running

PACKAGES = ("ai-edge-litert", "tensorflow-cpu")
#: In the run's folder.
_FILE = "litert.tflite"
_SIGNATURE = "gradients"


class TensorFlowOps:
    """``Ops`` in TensorFlow's functions, but for those whose gradient LiteRT has no operator for."""

    def __init__(self) -> None:
        """Import TensorFlow."""
        import tensorflow as tf

        self.tf = tf
        self.silu, self.reshape, self.embedding = tf.nn.silu, tf.reshape, tf.gather

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        rows = x if len(x.shape) == 2 else self.tf.reshape(x, (-1, x.shape[-1]))
        y = self.tf.matmul(rows, weight, transpose_b=True)
        if bias is not None:
            y = y + bias
        return y if len(x.shape) == 2 else self.tf.reshape(y, (*x.shape[:-1], weight.shape[0]))

    def relu(self, x: Any) -> Any:
        return self.tf.maximum(x, 0.0)

    def gelu(self, x: Any) -> Any:
        """In the form that the converter makes one operator of, and a gradient without the error function."""
        tf = self.tf

        def whole(x: Any) -> Any:
            return 0.5 * x * (1.0 + tf.math.erf(x * 0.5**0.5))

        @tf.custom_gradient
        def gelu(x: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                away = tf.where(tf.abs(x) < 1e-6, 1e-6, x)
                return upstream * (whole(away) / away + x * tf.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5)

            return whole(x), gradient

        return gelu(x)

    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        mean = self.tf.reduce_mean(x, -1, keepdims=True)
        around = x - mean
        variance = self.tf.reduce_mean(self.tf.square(around), -1, keepdims=True)
        return around * self.tf.math.rsqrt(variance + 1e-5) * weight + bias

    def rms_norm(self, x: Any, weight: Any) -> Any:
        return (
            x * self.tf.math.rsqrt(self.tf.reduce_mean(self.tf.square(x), -1, keepdims=True) + 1e-6) * weight
        )

    def rotary(self, x: Any) -> Any:
        length, width = x.shape[2:]
        angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)
        cosine, sine = np.cos(angles), np.sin(angles)
        left, right = self.tf.split(x, 2, axis=-1)
        return self.tf.concat([left * cosine - right * sine, right * cosine + left * sine], -1)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        tf, (b, heads, length, width), shared = self.tf, q.shape, k.shape[1]
        mask = np.triu(np.full((length, length), -1e9, np.float32), 1)
        q = tf.reshape(q, (b, shared, heads // shared * length, width))
        scores = tf.reshape(tf.matmul(q, k, transpose_b=True), (b, heads, length, length))
        weights = tf.nn.softmax(scores * width**-0.5 + mask)
        weights = tf.reshape(weights, (b, shared, heads // shared * length, length))
        return tf.reshape(tf.matmul(weights, v), (b, heads, length, width))

    def split(self, x: Any, heads: int) -> Any:
        b, length, width = x.shape
        return self.tf.transpose(self.tf.reshape(x, (b, length, heads, width // heads)), (0, 2, 1, 3))

    def merge(self, x: Any) -> Any:
        b, heads, length, width = x.shape
        return self.tf.reshape(self.tf.transpose(x, (0, 2, 1, 3)), (b, length, heads * width))

    def conv3(self, x: Any, weight: Any, bias: Any) -> Any:
        rows, kernel = self.tf.transpose(x, (0, 2, 3, 1)), self.tf.transpose(weight, (2, 3, 1, 0))
        return self.tf.transpose(self.tf.nn.conv2d(rows, kernel, 1, "VALID") + bias, (0, 3, 1, 2))

    def pool2(self, x: Any) -> Any:
        b, c, h, w = x.shape
        return self.tf.reduce_max(self.tf.reshape(x, (b, c, h // 2, 2, w // 2, 2)), (3, 5))

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        losses = self.tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return self.tf.reduce_sum(losses)


class NoOperatorError(Exception):
    """LiteRT has no operator for one of the model or its gradient."""


def _key(number: int) -> str:
    """Name of an output: those of parameters have dots."""
    return f"gradient_{number}"


def runtime() -> None:
    """The interpreter."""
    import ai_edge_litert.interpreter

    assert ai_edge_litert.interpreter


def prepare(workload: Workload, folder: Path) -> None:
    """Write a model whose parameters are variables; the converter makes constants of those that are not trained.

    (Given as constants at once, they take it three times the memory and four times the time, for the same file.)

    Raises:
        NoOperatorError: naming TensorFlow's operator.
    """
    import tensorflow as tf

    ops = TensorFlowOps()
    trained, frozen = given.values(folder, workload)
    batch = {
        name: tf.TensorSpec(value.shape, tf.dtypes.as_dtype(value.dtype), name)
        for name, value in _inputs(folder).items()
    }

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = [tf.Variable(trained[name]) for name in workload.trained]
            self.kept = [tf.Variable(value, trainable=False) for value in frozen.values()]

        @tf.function(input_signature=[batch])
        def gradients(self, rows: dict[str, Any]) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                own = dict(zip(workload.trained, self.own, strict=True))
                kept = dict(zip(frozen, self.kept, strict=True))
                loss = workload.loss(ops, {**kept, **own}, rows)
            found = tape.gradient(loss, self.own)
            return {"loss": loss, **{_key(i): value for i, value in enumerate(found)}}

    model = Model()
    with tempfile.TemporaryDirectory(prefix="pfl-bench-") as saved:
        tf.saved_model.save(model, saved, signatures={_SIGNATURE: model.gradients.get_concrete_function()})
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=[_SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        try:
            (folder / _FILE).write_bytes(converter.convert())
        except Exception as error:  # its type is internal
            missing = re.search(r"'tf\.(\w+)' op is neither", str(error))
            if missing is None:
                raise
            raise NoOperatorError(f"LiteRT has no operator for TensorFlow's {missing[1]}") from error


def files(_: Workload, folder: Path) -> list[Path]:
    """One file of program and values."""
    return [folder / _FILE]


def load(workload: Workload, folder: Path) -> Running:
    """The signature on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / _FILE), num_threads=1)
    run = interpreter.get_signature_runner(_SIGNATURE)
    inputs = _inputs(folder)

    def step() -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = run(**inputs)
        return out

    def gradients() -> dict[str, np.ndarray]:
        out = step()
        return {name: out[_key(i)] for i, name in enumerate(workload.trained)}

    return Running(step, gradients)


def _inputs(folder: Path) -> dict[str, np.ndarray]:
    """The batch, with ids of 32 bits."""
    found = given.batch(folder)
    return {
        name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in found.items()
    }
