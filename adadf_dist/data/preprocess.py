class Preprocessing: pass
