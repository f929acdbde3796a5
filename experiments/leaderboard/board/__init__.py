"""The leaderboard of methods: entries, searches, rows, policies, times, and the board that is made of them."""
