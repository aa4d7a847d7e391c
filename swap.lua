
-- Replaces a record.
--
-- KEYS[2]  the list of the circuit's history, where there are events
-- ARGV     7 g, 8 n, 9 b, 10 w, 11 r, 12 whether to publish (0 or 1)
--          13… events for the history

local g, n, b, w, r = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local t = int(now)

write('v', v, 'g', g, 't', t, 'n', n, 'b', b, 'w', w, 'r', r)
redis.call('PEXPIRE', key, int(life))
-- The rest in pcall: nothing may depend on whether it is permitted.
for i = 13, #ARGV do
  redis.pcall('LPUSH', KEYS[2], ARGV[i])
  redis.pcall('LTRIM', KEYS[2], 0, 49)
  redis.pcall('EXPIRE', KEYS[2], 604800)
end
if ARGV[12] == '1' then
  redis.pcall('PUBLISH', key, table.concat({ v, int(now), t, n, b, w, r }, ' '))
end
return reply('1', v, t, n, b, w, r)
