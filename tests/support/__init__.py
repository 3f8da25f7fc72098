"""What several tests share: policies, engines, servers, agents, faults, kill points."""
