"""What names a patient does not belong into the server's logs."""

from __future__ import annotations

import logging

PROXY = "/proxy/dicom"


def keep_patients_out_of_logs() -> None:
    """Silence or shorten those log lines of MONAI Label and its web server that name patients."""
    # it writes what is known of every image it offers
    logging.getLogger("monailabel.endpoints.activelearning").setLevel(logging.WARNING)
    access = logging.getLogger("uvicorn.access")
    if not any(isinstance(known, _WithoutQueries) for known in access.filters):
        access.addFilter(_WithoutQueries())


class _WithoutQueries(logging.Filter):
    """Viewers look for patients by name: the queries of the DICOM proxy are left out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                value.partition("?")[0] if isinstance(value, str) and value.startswith(PROXY) else value
                for value in record.args
            )
        return True
