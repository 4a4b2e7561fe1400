"""The gateway for actors outside Ray: who has which ticket under which lease, what is taken from them, and the HTTP
server where they ask. To the coordinator they are members like others."""
