"""HTTP: middleware, connections, answers, credentials of requests, endpoints."""
