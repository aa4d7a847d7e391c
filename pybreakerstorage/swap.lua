-- Reads a circuit, and returns it with the time. With arguments, it first replaces the
-- circuit, if it has not changed since the caller read it.
--
-- KEYS  hash of the Go side; Python's state, fail_counter, success_counter, opened_at
-- ARGV  1 expected version of the hash, 2-5 expected values of Python's keys
--       6-9 new values of Python's keys ('' keeps one), 10-12 fields r, p and t
--       none: read only
local seen = redis.pcall('HMGET', KEYS[1], 'v', 'r', 'p', 't')
if seen.err then
  return seen
end
for i = 2, 5 do
  local value = redis.pcall('GET', KEYS[i])
  if type(value) == 'table' then -- an error
    return value
  end
  seen[3 + i] = value
end
for i = 1, 8 do
  seen[i] = seen[i] or ''
end

local saved = '0'
if #ARGV > 0 and seen[1] == ARGV[1] and seen[5] == ARGV[2] and seen[6] == ARGV[3]
  and seen[7] == ARGV[4] and seen[8] == ARGV[5] then
  for i = 5, 2, -1 do -- in Python's order: the state last
    if ARGV[4 + i] ~= '' then
      redis.call('SET', KEYS[i], ARGV[4 + i])
    end
  end
  local v = tonumber(string.match(seen[1], '^%d+$') or '0') or 0 -- untrusted
  v = string.format('%.0f', v < 2 ^ 52 and v + 1 or 1)
  redis.call('HSET', KEYS[1], 'v', v, 'r', ARGV[10], 'p', ARGV[11], 't', ARGV[12])
  saved = '1'
end

local time = redis.call('TIME')
return {saved, time[1], time[2], unpack(seen)}
