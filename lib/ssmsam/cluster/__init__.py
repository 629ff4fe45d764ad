"""The same work on a thousand studies: in this process, in several, or on many machines by Dask.

A *cohort* is a list of studies, *work* is a function of one study, an *engine* says where it runs. Work is
content-addressed: doing it twice does no harm, and a run that was stopped goes on.
"""

from ssmsam.cluster.cohort import Cohort, Outcome, run_cohort
from ssmsam.cluster.engine import EngineUnavailable, Program, ProgramFailed, Tls, open_engine, run_elsewhere
from ssmsam.cluster.studies import Study, studies_of
from ssmsam.cluster.work import EmbedStudy, Model, ScoreStudy, SegmentStudy

__all__ = [
    "Cohort", "EmbedStudy", "EngineUnavailable", "Model", "Outcome", "Program", "ProgramFailed", "ScoreStudy",
    "SegmentStudy", "Study", "Tls", "open_engine", "run_cohort", "run_elsewhere", "studies_of",
]  # fmt: skip
