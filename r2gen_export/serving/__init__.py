"""The PACS node: receives studies, reports them, sends the results back; and the mercure module."""
