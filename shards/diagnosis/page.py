from shards.diagnosis.report import Report


def render(report: Report) -> str:
    return ""
