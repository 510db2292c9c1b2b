-- Requests that name three instances in turn, or say as much in a field that nobody reads: the
-- difference between the two is what affinity costs. `wrk -s affinity.lua URL -- FIELD`.
local requests, turn = {}, 0

function init(arguments)
    for number = 1, 3 do
        requests[number] = wrk.format("GET", "/", { [arguments[1]] = "bench-" .. number })
    end
end

function request()
    turn = turn % 3 + 1
    return requests[turn]
end
