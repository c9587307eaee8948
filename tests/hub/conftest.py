from tests.hub.fixtures import hub, offline, use_token

__all__ = ["hub", "offline", "use_token"]
