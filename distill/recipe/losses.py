"""A recipe's losses: a term each."""

from typing import Annotated

from pydantic import Field, model_validator

from distill.recipe.fields import NonNegative, Section, TapName


class Term(Section):
    """A part of the loss and its weight in the sum."""

    weight: Annotated[float, Field(gt=0.0)]


class TemperatureTerm(Term):
    """A term between softened distributions."""

    temperature: Annotated[float, Field(gt=0.0, description="Typical: 1-4.")]


class CrossEntropyTerm(Term):
    """Against the ground truth; unlabelled images contribute nothing."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]


class DKDTerm(TemperatureTerm):
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

    alpha: NonNegative
    beta: NonNegative


class DISTTerm(TemperatureTerm):
    """DIST (Huang et al. 2022, arXiv 2205.10536)."""

    beta: NonNegative
    gamma: NonNegative


class FeatureTerm(Term):
    """Mean squared error between features, the student's projected to the teacher's width."""

    student_layer: TapName
    teacher_layer: TapName


class LossSection(Section):
    """The weighted sum that is minimised; each term is logged under its name."""

    cross_entropy: CrossEntropyTerm | None = None
    kl: Annotated[TemperatureTerm | None, Field(description="KL(teacher || student).")] = None
    symmetric_kl: Annotated[
        TemperatureTerm | None, Field(description="SSLD's loss, published there under the name JS.")
    ] = None
    jensen_shannon: TemperatureTerm | None = None
    dkd: DKDTerm | None = None
    dist: DISTTerm | None = None
    feature_mse: FeatureTerm | None = None

    @property
    def terms(self) -> dict[str, Term]:
        """The terms in use, by name."""
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossSection":
        if not self.terms:
            raise ValueError(f"must have at least one of: {', '.join(type(self).model_fields)}")
        return self
