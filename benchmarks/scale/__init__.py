"""What changes at scale: a replica under load, driven by a latency model that was measured or computed from data sheets."""
