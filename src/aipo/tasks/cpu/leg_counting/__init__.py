"""The CPU task: a capability boundary on reasoning-gym's `leg_counting` that practice alone cannot cross."""
