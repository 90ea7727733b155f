"""Photo puppets: photographs of faces moved on their landmarks by the same rig as drawn heads."""
