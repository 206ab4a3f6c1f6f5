"""How much noise each layer makes at the network's outputs at each width: what allocation spends bytes on."""
