
-- Replaces a record.
--
-- ARGV     7 g, 8 n, 9 b, 10 w, 11 r, 12 whether to publish (0 or 1)

local g, n, b, w, r = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local t = int(now)

write('v', v, 'g', g, 't', t, 'n', n, 'b', b, 'w', w, 'r', r)
redis.call('PEXPIRE', key, int(life))
if ARGV[12] == '1' then
  -- Last and in pcall: nothing may depend on whether publishing is permitted.
  redis.pcall('PUBLISH', key, table.concat({ v, int(now), t, n, b, w, r }, ' '))
end
return reply('1', v, t, n, b, w, r)
