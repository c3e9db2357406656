"""Text for calibration and evaluation: reading, packing, splitting, the guard between."""

from clp_edge.data.calibration import Calibration, calibrate, split_documents
from clp_edge.data.documents import Documents, documents_from_texts, read_documents
from clp_edge.data.evaluation import EvaluationText, evaluation_text, held_back
from clp_edge.data.own_text import write_own_text
from clp_edge.data.packing import follows_bos, pack

__all__ = [
    "Calibration",
    "Documents",
    "EvaluationText",
    "calibrate",
    "documents_from_texts",
    "evaluation_text",
    "follows_bos",
    "held_back",
    "pack",
    "read_documents",
    "split_documents",
    "write_own_text",
]
