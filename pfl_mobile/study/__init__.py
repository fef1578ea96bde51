"""Studies: does personalization pay, for whom, and with which strategy."""

from pfl_mobile.study.comparison import Comparison
from pfl_mobile.study.evaluation import Evaluation
from pfl_mobile.study.recommend import Recommendation
from pfl_mobile.study.result import StudyResult
from pfl_mobile.study.settings import Cohort, Machine
from pfl_mobile.study.study import Study

__all__ = ["Cohort", "Comparison", "Evaluation", "Machine", "Recommendation", "Study", "StudyResult"]
