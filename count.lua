-- Adds to the count of a record: step.to and the row's beginning in state.go.
-- A count that has reached a limit is to be judged before it counts on.
--
-- ARGV     7 add, 8 restarts (0 or 1), 9 after, 10 lower, 11 upper

local UNLIMITED = 2147483647
local add, after = tonumber(ARGV[7]), tonumber(ARGV[9])
local lower, upper = tonumber(ARGV[10]), tonumber(ARGV[11])
local before, b = tonumber(old[4]) or 0, old[5] or '0'

if before <= lower or before >= upper then
  return reply('0', old[1], old[3], old[4], b, old[6])
end
local n = math.max(math.min(before + add, UNLIMITED), 0)
local restarted = ARGV[8] == '1' and (add == 0 or n < upper)
if restarted then
  n = math.min(after, UNLIMITED)
end
if n > 0 and (before == 0 or restarted) then
  b = int(now)
end
n = int(n)

write('v', v, 'n', n, 'b', b)
if redis.call('PTTL', key) < life then
  redis.call('PEXPIRE', key, int(life))
end
return reply('1', v, old[3], n, b, old[6])
