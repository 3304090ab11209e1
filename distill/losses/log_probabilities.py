"""What every loss between logits starts from: log-probabilities, in float32."""

import paddle
from paddle import Tensor


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The logarithm of softmax(logits / T), which is never taken of a rounded probability.

    Args:
        logits: [N, C], any float type; computed in float32, since float16 overflows at 65504 and
            resolves a log-probability near 10 to 0.008 only.
        temperature: T > 0.

    Returns:
        float32 [N, C]; finite for all finite logits.

    Raises:
        ValueError: The logits are no matrix or T is not > 0.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, C], received the shape {list(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, received {temperature}. Typical: 1-4.")
    return log_softmax(logits.astype("float32") / temperature)


def log_probability_pair(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`log_probabilities` of both; the teacher's carry no gradient.

    Args:
        student_logits: [N, C], any float type.
        teacher_logits: [N, C], any float type.
        temperature: T > 0, applied to both.

    Raises:
        ValueError: The shapes differ (broadcasting would hide it) or are no matrices, or T is not > 0.
    """
    if list(student_logits.shape) != list(teacher_logits.shape):
        raise ValueError(
            f"student and teacher logits must have one shape [N, C], received {list(student_logits.shape)} "
            f"and {list(teacher_logits.shape)}: do both networks know the same classes?"
        )
    with paddle.no_grad():
        log_teacher = log_probabilities(teacher_logits, temperature)
    return log_probabilities(student_logits, temperature), log_teacher


def log_softmax(values: Tensor) -> Tensor:
    """Log softmax over the classes.

    Paddle's own, its softmax and its cross-entropy cut everything below -64 on a CPU (measured with 3.3.1):
    they answer -64 for log softmax([0, 100])[0], and the value and the gradient of a KL divergence are wrong.

    Args:
        values: float32 [N, C].

    Returns:
        float32 [N, C].
    """
    # Without the shift a logit of 1e4 leaves an error of 5e-4; the shift drops out of the gradient.
    shifted = values - values.max(axis=1, keepdim=True).detach()
    return shifted - paddle.logsumexp(shifted, axis=1, keepdim=True)
