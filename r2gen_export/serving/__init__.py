"""Long-running services: the PACS node and its durable queue."""
