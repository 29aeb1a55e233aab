module bridge/bench/load

go 1.21
